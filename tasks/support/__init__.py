"""What stages share: inputs and outputs, tracking, records of a run."""
