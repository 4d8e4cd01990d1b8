"""Files of rows in the formats that people have: each module reads one, row by row, in bounded memory."""
