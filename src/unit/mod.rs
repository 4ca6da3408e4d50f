//! The physical side: one remapping unit and its tables.
