"""What pages show: figures, knobs, and the stored results of long runs."""
