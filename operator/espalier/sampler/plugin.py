"""Entry point ``vllm.general_plugins``: runs in every process of vLLM, more than once."""

from __future__ import annotations

import os


def register() -> None:
    """Register our adapter resolver, have loads verified and slots shared, fix faults on CPU.

    Imports stay inside: vLLM only logs a plugin that fails to import, and goes on without it, but
    does not survive one that raises here.
    """
    # The same environment may serve other vLLM programs; they are left as they are.
    if "ESPALIER_BASE" not in os.environ:
        return
    from vllm.lora.resolver import LoRAResolverRegistry  # noqa: PLC0415
    from vllm.platforms import current_platform  # noqa: PLC0415

    from espalier.sampler import settings  # noqa: PLC0415
    from espalier.sampler.resolver import StoreResolver  # noqa: PLC0415
    from espalier.sampler.verified_store import AdapterStore  # noqa: PLC0415

    configuration = settings.SamplerSettings.read(os.environ)
    if current_platform.is_cpu():
        from espalier.sampler.cpu import prompt_logprobs  # noqa: PLC0415

        prompt_logprobs.install()
    if configuration.adapter_type == "Full":
        return
    if current_platform.is_cpu():
        from espalier.sampler.cpu import lora_ops  # noqa: PLC0415

        lora_ops.install()
    from espalier.sampler import slot_scheduling, verified_load  # noqa: PLC0415

    verified_load.install()
    slot_scheduling.install()
    if "espalier" not in LoRAResolverRegistry.get_supported_resolvers():
        store = AdapterStore(configuration.volume, configuration.base, configuration.max_lora_rank)
        LoRAResolverRegistry.register_resolver("espalier", StoreResolver(store))
