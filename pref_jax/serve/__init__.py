"""The service: votes and users in a database, rewards over HTTP, a page where people vote."""
