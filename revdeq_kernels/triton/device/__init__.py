"""Device functions: what one program does to its leaf or tile."""
