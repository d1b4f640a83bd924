"""Says what a run will need before it is started: by arithmetic, and by the TPU compiler."""
