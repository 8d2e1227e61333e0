//! What a virtual machine is: plain, validated types
