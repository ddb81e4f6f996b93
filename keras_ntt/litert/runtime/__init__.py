"""Running a file with LiteRT's interpreter."""
