"""Rewards for other people's trainers: TRL, verl, OpenRLHF, tunix; each has a module of its name.

    from pref_jax.integrations import trl
    trainer = GRPOTrainer(reward_funcs=trl.reward_function("mine"), ...)

In process (a model, or the folder of a saved one) or through the service (its URL). What they share, such as what a
missing user gets, stands in `pref_jax.integrations.scoring`.
"""
