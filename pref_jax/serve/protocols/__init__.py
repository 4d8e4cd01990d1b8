"""What other engines and trainers speak, so that their stock clients work unchanged."""
