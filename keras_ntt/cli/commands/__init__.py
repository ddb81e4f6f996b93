"""Options and help texts, one command a file."""
