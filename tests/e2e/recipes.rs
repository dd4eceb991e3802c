//! The recipes of `docs/recipes.md`, each tried with the real thing.

mod container;
mod editor;
mod jupyterhub;
mod podman;
mod slurm;
mod terraform;
mod tmux;
