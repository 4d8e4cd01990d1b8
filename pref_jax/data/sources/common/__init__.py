"""What several data sources share."""
