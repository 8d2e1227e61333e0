//! Config to board: vCPU threads, lifecycle, save and restore
