"""postx plan: what a model needs and costs on a device, and which models do what is asked."""

EPILOG = """MODEL is a published model (postx plan --list) or a pattern of your own, a letter for each layer:
  A attention, L the same in a window, K latent attention; S Mamba-2, M Mamba, R RG-LRU; G Gated DeltaNet,
  7 RWKV-7, W GLA; C a short convolution; (AS) side by side; F an MLP alone. An MLP follows all mixers but M and S.
k and M of tokens are 1,024 and 1,024 squared; GB are 10^9 bytes. Times are floors: most programs are slower.

  postx plan Llama-3-8B --context 64k --batch 16 --bits 4 --device "RTX 4090"
  postx plan SSSSSSSASSSSSSSA --width 4096 --context 1M
  postx plan --fit "24 GB, 64k tokens, 16 users" --must recall"""


def arguments(parser):
    add = parser.add_argument
    add("model", nargs="?", metavar="MODEL", help="a published model, or a pattern of layers")
    add("--list", action="store_true", help="name the models and devices that are known")
    add("--context", metavar="N", help="tokens of each text (default 8k)")
    add("--batch", "--users", dest="batch", metavar="N", help="texts at once (default 1)")
    add("--bits", metavar="B", help="bits a weight, with scales (default 16; --fit: the most of 16, 8, 4 that fit)")
    add("--cache-bits", metavar="B", default="16", help="bits a number of the cache (default 16)")
    add("--state-bits", metavar="B", default="32", help="bits a number of the state (default 32)")
    add("--width", metavar="D", help="width of a pattern of your own (default 4096)")
    add("--layers", metavar="LETTERS", help="other layers in the places of a published model")
    add("--window", metavar="N", help="tokens that sliding layers see (default the model's, or 4k)")
    add("--device", metavar="NAME", default="H100", help="the device, by the beginning of its name (default H100)")
    add("--memory", metavar="SIZE", help="memory instead of the device's: 24 GB")
    add("--price", metavar="DOLLARS", help="dollars an hour instead of the device's")
    add("--fit", metavar="WISH", help='which models fit: "24 GB, 64k tokens, 16 users"')
    add("--must", action="append", choices=["recall"], default=[],
        help="with --fit: recall asks for a layer that keeps every token")  # fmt: skip


def run(args):
    from postx import planner

    if args.list:
        listed(planner)
    elif args.fit is not None:
        fitted(planner, args)
    elif args.model:
        one(planner, args)
    else:
        raise ValueError("name a MODEL, or --fit, or --list; postx plan --help tells more")


def number(args, name):
    from postx.planner.words import amount

    told = getattr(args, name)
    return None if told is None else amount(f"--{name.replace('_', '-')}", told)


def numbers(args, **names):
    """{name of the planner: number} of the options that were given."""
    found = {to: number(args, name) for name, to in names.items()}
    return {to: n for to, n in found.items() if n is not None}


def one(planner, args):
    from postx.planner import facts
    from postx.planner.words import money, say, three, whole

    plan = planner.plan(args.model, device=args.device, layers=args.layers, **numbers(
        args, context="context", batch="batch", bits="weight_bits", cache_bits="cache_bits", state_bits="state_bits",
        width="width", window="window", memory="memory", price="price"))  # fmt: skip
    choices, found, device = plan.choices, plan.found, plan.device
    bits = ", ".join(f"{name} {three(choices[f'{name}_bits'])}" for name in ("weight", "cache", "state"))
    context, batch = whole(choices["context"]), whole(choices["batch"])
    print(f"{plan.row.name} on {device['name']}: {batch} x {context} tokens; bits: {bits}")
    print()
    size = {name: say(found[f"{name}_bytes"], "bytes") for name in ("weight", "cache", "state", "total")}
    print("memory   {total}: weights {weight}, cache {cache}, state {state}".format(**size))
    for name, when in (("prompt", f"one text of {context} tokens"), ("token", "one more token for each")):
        print(f"{name:8} {say(found[f'{name}_flops'], 'flops')}, {say(found[f'{name}_bytes'], 'bytes')}, "
              f"at least {say(found[f'{name}_seconds'], 'seconds')} ({when})")  # fmt: skip
    print(f"speed    at most {three(found['tokens_a_second'])} tokens a second; {plan.binds} binds")
    if device["price"]:
        read, written, price = money(found["prompt_cost"]), money(found["written_cost"]), money(device["price"])
        print(f"cost     at least {read} a million tokens read, {written} written, at {price} an hour")
    print(*("", *plan.sentences(), ""), sep="\n")
    known = plan.row.name in planner.rows.catalogue() and args.layers is None
    if not known:
        print("quality  not published: these layers are your own")
        return
    for kind in ("recall", "benchmark", "perplexity", "compression"):
        for row in facts.quality(plan.row.name, kind) or ([None] if kind in ("recall", "benchmark") else []):
            print(f"{kind:10} " + (f"{facts.figure(row)} ({row['source']}, {row['date']})" if row else facts.NONE))
    length = facts.context(plan.row.name)
    print(f"{'length':10} " + (f"{whole(length['tokens'])} tokens ({length['source']}, {length['date']})"
                              if length else facts.UNKNOWN))  # fmt: skip
    for row in facts.measured(plan.row.name, device["name"]):
        speed, held = three(row["tokens_a_second"]), whole(row["context"])
        print(f"{'measured':10} {speed} tokens a second at {three(row['weight_bits'])} bits, 1 x {held} tokens "
              f"({row['source']}, {row['date']})")  # fmt: skip
    print(f"{'served by':10} " + ", ".join(f"{server}: {name}" for server, name in facts.served(plan.row.name).items()))


def wish(text):
    """("24 GB, 64k tokens, 16 users") -> memory, context, users. Raises ValueError for what it cannot read."""
    from postx.planner.words import amount

    found = {}
    for part in text.split(","):
        words = part.split()
        unit = words[-1].lower().rstrip("s") if words else ""
        name = {"token": "context", "user": "users"}.get(unit, "memory")
        said = " ".join(words if name == "memory" else words[:-1])
        if name == "memory" and not unit.endswith("b") or name in found:
            raise ValueError(f'--fit: expected such as "24 GB, 64k tokens, 16 users", cannot read {part.strip()!r}')
        found[name] = amount("--fit", said)
    return found


def fitted(planner, args):
    from postx.cli import table
    from postx.planner import facts
    from postx.planner.words import say, three, whole

    asked = wish(args.fit) if args.fit.strip() else {}
    asked |= numbers(args, memory="memory", context="context", batch="users")
    if missing := [name for name in ("memory", "context", "users") if name not in asked]:
        raise ValueError(f"--fit: say also the {' and the '.join(missing)}, such as \"24 GB, 64k tokens, 16 users\"")
    bits = number(args, "bits")
    more = numbers(args, cache_bits="cache_bits", state_bits="state_bits") | ({"bits": (bits,)} if bits else {})
    verdicts = planner.survivors(**asked, recall="recall" in args.must, device=args.device, **more)
    good = [v for v in verdicts if v.survives]
    print(f"{say(asked['memory'], 'bytes')}, {whole(asked['users'])} x {whole(asked['context'])} tokens"
          f"{', must recall' if args.must else ''}: {len(good)} of {len(verdicts)} models survive")  # fmt: skip
    if good:
        print()
        head = ["model", "bits", "memory", "tokens/s at most", "longest text", "recall", "benchmark"]
        print(*table([cells(v, facts, say, three) for v in good], head), sep="\n")
        print(f"\nSpeeds are floors on {planner.facts.device(args.device)['name']}.")
    for v in verdicts:
        if not v.survives:
            print(f"\n{v.name}" + "".join(f"\n  {reason}" for reason in v.reasons), end="")
    print()


def cells(verdict, facts, say, three):
    figures = ["; ".join(map(facts.figure, facts.quality(verdict.name, kind))) or facts.NONE
               for kind in ("recall", "benchmark")]  # fmt: skip
    found = verdict.plan.found
    total, speed = say(found["total_bytes"], "bytes"), three(found["tokens_a_second"])
    length = facts.context(verdict.name)
    return [verdict.name, three(verdict.weight_bits), total, speed,
            f"{length['tokens']:,}" if length else facts.UNKNOWN, *figures]  # fmt: skip


def listed(planner):
    from postx.cli import table
    from postx.planner import facts
    from postx.planner.words import money, say, three, whole

    lengths = {name: facts.context(name) for name in planner.rows.catalogue()}
    print(*table([(name, whole(planner.rows.of(name).numbers()["weights"]),
                   whole(length["tokens"]) if length else facts.UNKNOWN) for name, length in lengths.items()],
                 ["model", "weights", "length"]), sep="\n")  # fmt: skip
    print()
    print(*table([(row["name"], say(row["memory"], "bytes"), f"{three(row['bandwidth'] / 1e9)} GB/s",
                   f"{three(row['flops'] / 1e12)} TFLOP/s", f"{money(row['price'])}/h" if row["price"] else "-",
                   row["date"])
                  for row in facts.table()["device"]],
                 ["device", "memory", "bandwidth", "arithmetic", "price", "date"]), sep="\n")  # fmt: skip
    print(f"\nChecked {facts.table()['checked']}; sources in postx/planner/facts.toml.")
