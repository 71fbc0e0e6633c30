//! Two-way synchronisation of a directory here and one on the server.
//!
//! [`plan`] decides, as a pure function of three trees: what is here, what is there, and what both agreed on when they
//! were last the same (the base). [`scan`] reads the trees, [`state`] keeps the base, [`run`] does what was decided.
//!
//! [`events`] tells when to look again, [`choice`] ends conflicts as people decide.
//!
//! Rules that never bend:
//! * Content that somebody changed is never overwritten or deleted: an edit wins over a deletion, and two different
//!   edits are both kept, the one from here under a conflict name.
//! * What is removed goes to a trash: the server's, or `.atrium-trash` in the directory here.
//! * Each step checks again, right before it acts, that what it replaces is what was decided upon.
//! * The base is only a memory of agreement. If it is lost or belongs to another directory, both trees are joined and
//!   nothing is deleted.

pub mod choice;
pub mod conflict;
pub mod events;
pub mod local;
pub mod plan;
pub mod run;
pub mod scan;
pub mod state;
