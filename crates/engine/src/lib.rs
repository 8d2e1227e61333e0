//! What a CPU engine is: vCPUs, exits as data, interrupts in, kicks
