//! What kernel and user space share.
#![cfg_attr(not(test), no_std)]
