"""MLproject entry points, one thin file each: parse, call, exit code."""
