//! Runs single data instructions on the host CPU: the host is the specification
