"""Replaces personal data that have a form of their own: e-mail addresses, telephone numbers,
payment cards, IBANs and addresses of the internet."""

import dataclasses

from gptjax.config import safety
from gptjax.config.curation import MaskPersonalData
from gptjax.curation.page import Page, StageFn
from gptjax.safety import stream_filter


def mask_personal_data(rule: MaskPersonalData) -> StageFn:
    """Returns a stage that replaces personal data by <email>, <phone>, <card>, <iban> or <ip>; it
    drops nothing."""

    def stage(page: Page) -> Page:
        return dataclasses.replace(page, text=mask(page.text, rule.kinds))

    return stage


def mask(text: str, kinds: tuple[safety.PersonalKind, ...]) -> str:
    """Returns a text with the personal data of these kinds replaced."""
    rules = stream_filter.rules([safety.PersonalData(kinds=kinds, region=None)])
    return stream_filter.filter_text(text, rules, b"")[0]
