"""What one program does to its leaf or its tile."""
