"""What parameter and search files say: sections with defaults, checks and one-line errors."""
