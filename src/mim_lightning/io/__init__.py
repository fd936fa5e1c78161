"""Reading and writing files: paths and URLs, remote reads, atomic writes, locks, damaged and unsafe files."""
