//! A type for every tensor under a byte budget.

mod candidates;
mod choose;
mod correlation;
mod cost;
mod experts;
pub mod knapsack;
mod recipe;
mod solve;
mod strategy;

pub use candidates::{Candidates, Pin, default_types};
pub use cost::CostModel;
pub use recipe::{Plan, TensorChoice};
pub use solve::{Budget, Granularity, PlanInputs, make_plan, plan_bytes};
pub use strategy::{Fares, Measured, Scenario, plan_for};
