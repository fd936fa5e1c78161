"""What people see: numbers as text, progress bars, figure style, text in images, untrusted text made printable."""
