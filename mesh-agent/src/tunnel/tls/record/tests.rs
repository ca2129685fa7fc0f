//! The tests of the module above.
