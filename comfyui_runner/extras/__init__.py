"""What goes beyond the two modes. The core imports it only where it is asked for."""
