"""`threadmill dlq`: look at dead letters, and everything else that is done with them."""

from __future__ import annotations

import typer

from threadmill.cli import dead_letter_acts as acts
from threadmill.cli import dead_letter_drain as drain
from threadmill.cli import dead_letter_exchange as exchange
from threadmill.cli import dead_letter_replays as replays
from threadmill.cli.dead_letter_detail import detail_view
from threadmill.cli.dead_letter_options import LetterArgument, takes_filter
from threadmill.cli.dead_letter_views import groups_table, letters_table, stats_view
from threadmill.cli.dead_letter_watch import watch
from threadmill.cli.invocation import (
    AfterOption,
    GraphOption,
    JsonOption,
    LimitOption,
    TenantOption,
    invocation_of,
)
from threadmill.cli.output import note, show
from threadmill.dlq import Desk
from threadmill.dlq.filter import LetterFilter

app = typer.Typer(name="dlq", help="Dead letters: the runs that failed for good.", no_args_is_help=True)

ID = "0199c0de-0000-7000-8000-000000000000"


@takes_filter
def list_letters(
    context: typer.Context,
    limit: LimitOption = 20,
    after: AfterOption = None,
    as_json: JsonOption = False,
    *,
    chosen: LetterFilter,
) -> None:
    """Dead letters, the newest first."""
    with Desk(invocation_of(context).settings(of=chosen.tenant)) as desk:
        letters = desk.list(chosen, limit=limit, after=after)
    show(as_json, [letter.to_dict() for letter in letters], lambda: letters_table(letters))
    if not as_json and len(letters) == limit:
        note(f"more: --after {letters[-1].id}")


def groups(
    context: typer.Context,
    tenant: TenantOption = None,
    graph: GraphOption = None,
    limit: LimitOption = 20,
    after: AfterOption = None,
    as_json: JsonOption = False,
) -> None:
    """What failed in the same way, as one: how often, since when, and how its drain stands."""
    with Desk(invocation_of(context).settings(of=tenant)) as desk:
        found = desk.groups(tenant=tenant, graph=graph, limit=limit, after=after)
    show(as_json, [group.to_dict() for group in found], lambda: groups_table(found))
    if not as_json and len(found) == limit:
        note(f"more: --after {found[-1].fingerprint}")


def show_letter(context: typer.Context, letter: LetterArgument, as_json: JsonOption = False) -> None:
    """One dead letter: what failed and where, the state it left, what was done, what a replay would do."""
    with Desk(invocation_of(context).settings()) as desk:
        detail = desk.detail(letter)
    show(as_json, detail.to_dict(), lambda: detail_view(detail))


def stats(context: typer.Context, as_json: JsonOption = False) -> None:
    """All dead letters in numbers, and what slows their replay."""
    with Desk(invocation_of(context).settings()) as desk:
        numbers, pauses, rates = desk.stats(), desk.pauses(), desk.rates()
    document = {
        **numbers.to_dict(),
        "pauses": [pause.to_dict() for pause in pauses],
        "rates": [rate.to_dict() for rate in rates],
    }
    show(as_json, document, lambda: stats_view(numbers, pauses, rates))


for name, command, example in (
    ("list", list_letters, "list --status parked --graph librarian --since 2h"),
    ("groups", groups, "groups --graph librarian"),
    ("show", show_letter, f"show {ID}"),
    ("stats", stats, "stats"),
    ("replay", replays.replay, "replay --group 3f1c9a0b7d52e846 --rate 50/s --dry-run"),
    ("jobs", replays.jobs, "jobs"),
    ("stop", replays.stop, f"stop {ID}"),
    ("continue", replays.continue_job, f"continue {ID}"),
    ("edit", acts.edit, f'edit {ID} --patch \'{{"question": "What is a lease?"}}\''),
    ("discard", acts.discard, f'discard {ID} --because "the customer has left"'),
    ("restore", acts.restore, f"restore {ID}"),
    ("park", acts.park, "park --tenant acme --exception KeyError"),
    ("note", acts.note, f'note {ID} "asked the provider"'),
    ("export", exchange.export, "export --since 7d --output letters.jsonl"),
    ("import", exchange.import_letters, "import letters.jsonl"),
    ("pause", drain.pause, 'pause --graph librarian --because "the index is being rebuilt"'),
    ("unpause", drain.unpause, "unpause --graph librarian"),
    ("rates", drain.rates, "rates"),
    ("rate", drain.rate, "rate 50/s --graph librarian"),
    ("drain", drain.drain, "drain --rate 50/s"),
    ("watch", watch, "watch --webhook https://alarms.example.org/hooks/threadmill --held-longer-than 15m"),
):
    app.command(name, epilog=f"Example: `threadmill dlq {example}`")(command)
