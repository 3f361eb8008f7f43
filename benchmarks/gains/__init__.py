"""What single techniques gain, see benchmarks/techniques.py."""
