//! DNS capture: queries of workloads that want it go through the agent and come back as they are. Nothing else does.

mod answers;
mod life;
mod limits;
mod scene;
