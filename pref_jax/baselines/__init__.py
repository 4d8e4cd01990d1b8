"""The methods of the field that CoPL and LoRe are compared with."""
