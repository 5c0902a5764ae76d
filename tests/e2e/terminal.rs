//! What people see in the terminal: every help page, and every command of the three programs with good and bad outcomes, at 80 columns, in
//! colour and without, and as JSON; kept as files under `tests/golden/terminal`. Walks of one stand each, with files of their own, and at
//! the end the proof that no command was left out. `POSTERN_BLESS=1` writes the files anew, for whoever changed them on purpose to look at.

mod agent;
mod calls;
mod changes;
mod ends;
mod every;
mod forwards;
mod help;
mod pages;
mod people;
mod relay;
mod running;
mod same;
mod schemas;
mod seen;
mod stage;
