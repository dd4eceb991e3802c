//! The recipes of `docs/recipes.md`, each tried with the real thing.

mod jupyterhub;
