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
    rules = stream_filter.rules([safety.PersonalData(kinds=rule.kinds, region=None)])

    def stage(page: Page) -> Page:
        text, _ = stream_filter.filter_text(page.text, rules, b"")
        return dataclasses.replace(page, text=text)

    return stage
