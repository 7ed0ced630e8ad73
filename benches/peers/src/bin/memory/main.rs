//! What sharing costs: the memory library beside what it is made of and what it replaces.
//!
//!     memory pairs [--pairs 10] [--only NAME]   one thread; rounds that alternate over all rows
//!     memory contention [--seconds 0.5]         2, 4 and 8 threads on one value
//!     memory echo [--pairs 10] [--seconds 1]    framed echo with the pools and without; allocations per message
//!
//! CPU time of the thread (`pairs`) or of the process, never wall time.

mod contention;
mod echo;
mod pairs;

use portway_peers::{Args, allocations, load_average};

#[global_allocator]
static ALLOCATOR: allocations::Counting = allocations::Counting;

fn main() {
    let args = Args::parse();
    println!("load average: {}", load_average());
    match args.words.first().map(String::as_str) {
        Some("pairs") => pairs::run(&args),
        Some("contention") => contention::run(&args),
        Some("echo") => echo::run(&args),
        Some("echo-once") => echo::once(&args),
        _ => panic!("memory pairs | contention | echo"),
    }
    println!("load average: {}", load_average());
}
