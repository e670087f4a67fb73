"""The pruning room: calibration, importance, selection, the checkpoint writer and its verification."""
