"""The team's rules of promotion, as `[promotion]` in soundstage.toml."""

from pydantic import Field, SecretStr

from speech.settings import Section


class PromotionSettings(Section):
    """Who may move a model to production, and what they may decide."""

    approvers: tuple[str, ...] = Field(
        (), description="Names that may approve, reject and roll back. Empty: nobody can, until the team names someone."
    )
    two_person: bool = Field(
        False,
        description="The person who launched a training cannot be the only one to approve its model. Who that was is "
        "the run tag `soundstage/launched_by` (or `user`); a training that nobody signed needs two approvers. A "
        "roll-back needs one in any case. Off by default: Dagster itself does not know its users, so the rule is worth "
        "as much as the tag.",
    )
    require_better: bool = Field(
        True,
        description="A model that is merely as good as the champion is not approved: the paired interval of their WER "
        "on the frozen benchmark must lie below zero.",
    )
    challenger_expires_days: int = Field(
        90, ge=1, description="A challenger judged longer ago than this is closed and must be judged again (days)."
    )
    allow_override: bool = Field(
        False,
        description="Approvers may accept failed gates of one bundle, in the job `override_gates` and then in "
        "`promote`; each is an entry in the ledger with its reason. A missing or altered verdict stays a refusal.",
    )
    ledger_key: SecretStr | None = Field(
        None,
        min_length=16,
        description="Key by which every entry of the ledgers is signed; one without its signature is then refused. Set "
        "SOUNDSTAGE_PROMOTION__LEDGER_KEY, so that it is not on the disk of the data store. None: nothing is signed.",
    )

    @property
    def signing_key(self) -> bytes | None:
        """The ledger key's bytes, if there is one."""
        return self.ledger_key.get_secret_value().encode() if self.ledger_key else None
