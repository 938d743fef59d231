"""The mathematical core: scaled diffusion over components, schedules, parametrisations, guidance."""
