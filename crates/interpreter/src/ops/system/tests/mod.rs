//! System behaviour, clause by clause, on whole vCPUs: tables are laid out in guest memory, code
//! runs to a breakpoint, and the state there is looked at.

mod board;
mod borrow;
mod control;
mod debug;
mod events;
mod features;
mod machine;
mod paging;
mod segments;
mod transfers;
mod walks;
