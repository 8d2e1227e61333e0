//! Guests made from Debian's packages
