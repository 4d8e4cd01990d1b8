"""Where preferences come from, one file each."""
