"""Decisions about production: rules, a ledger, and a registry that follows it.

The threat model, in one place. What is caught is accidents and mistakes, each by one check with one reason:

- a file that is half written or was edited: an entry's hash, a verdict's checksum, a bundle's digest differ;
- a ledger whose end is missing, as after an old backup was put back: the registry notes the last decision;
- a tag that was edited or an alias that was moved in MLflow: neither decides anything, and a check tells of it;
- a wrong or damaged bundle, figures of another one, thresholds or a champion that have changed since: the verdict for
  exactly this bundle is read again before it moves forward, back or into service;
- a person without the right, without a reason, or alone where two are asked for: the rules refuse the decision;
- a process that dies half way: what is in the ledger was decided, and the next to look has the registry follow it.

Who may write to the disk that holds the data store is trusted: hashes can be computed anew. Where that is too much
trust, entries are signed with a key that is not on that disk (`promotion.ledger_key`), and whoever has the disk alone
can neither write nor change a decision. The key then has to be where decisions are taken and releases are made; a
replica that is given it (`deployment.serving.approval`) looks for the signatures itself.

Names are taken as given: Dagster and MLflow do not know their users unless a proxy in front of them signs people in.
"""
