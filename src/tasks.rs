//! What a task leaves behind for whoever joins it.

use tokio::task::JoinError;

/// Returns what a task returned, or goes on with its panic where it was started.
///
/// Not for tasks that are aborted while somebody waits for them: `JoinSet::shutdown` aborts, and returns none of those.
pub(crate) fn reraise<T>(ended: Result<T, JoinError>) -> T {
    ended.unwrap_or_else(|error| std::panic::resume_unwind(error.into_panic()))
}

#[cfg(test)]
mod tests {
    use tokio::task::JoinSet;

    use super::reraise;

    #[tokio::test]
    async fn the_value_of_a_task_comes_back() {
        let mut tasks = JoinSet::new();
        tasks.spawn(async { 7 });
        assert_eq!(tasks.join_next().await.map(reraise), Some(7));
    }

    #[tokio::test]
    #[should_panic(expected = "what went wrong")]
    async fn its_panic_goes_on() {
        let mut tasks = JoinSet::<()>::new();
        tasks.spawn(async { panic!("what went wrong") });
        tasks.join_next().await.map(reraise);
    }
}
