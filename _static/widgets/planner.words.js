// Numbers and sentences of the planner in words, as postx/planner/words.py says them.
postx.planner ??= {};

// Three digits, commas: 1,230, 0.0456.
postx.planner.three = (x) => {
  if (!x || !isFinite(x)) return x ? "∞" : "0";
  const rounded = Number(x.toPrecision(3));
  return rounded.toLocaleString("en-US", { maximumFractionDigits: 20, useGrouping: true });
};

postx.planner.whole = (n) => Math.round(n).toLocaleString("en-US");

postx.planner.money = (x) =>
  x >= 0.1
    ? `$${Number(x.toFixed(2)).toLocaleString("en-US", { minimumFractionDigits: 2 })}`
    : `$${postx.planner.three(x)}`;

postx.planner.say = (units, x) => {
  const [unit, size] = [...units].reverse().find((pair) => x >= pair[1]) ?? units[0];
  return `${postx.planner.three(x / size)} ${unit}`;
};

postx.planner.fill = (sentence, words) => sentence.replace(/\{(\w+)\}/g, (_, name) => words[name]);

postx.planner.binds = (found) =>
  found.total_bytes > found.usable ? "capacity" : found.compute_seconds > found.memory_seconds ? "compute" : "bandwidth";

postx.planner.many = (users) =>
  isFinite(users) ? `${postx.planner.three(users)} user${users === 1 ? "" : "s"}` : "any number of users";

postx.planner.told = (data, found, asked) => {
  const { three, whole, say, fill, many } = postx.planner;
  const { bytes, flops, seconds } = data.units;
  const context = whole(asked.context);
  const from = (key, missing) =>
    isFinite(found[key])
      ? [key.replace("_crossing", ""), { n: (key === "compute_users" ? many : three)(found[key]) }]
      : [missing, { context }];
  const longest = found.longest;
  return [
    [
      found.total_bytes <= found.usable ? "fits" : "over",
      { total: say(bytes, found.total_bytes), usable: say(bytes, found.usable) },
    ],
    [
      found.compute_seconds > found.memory_seconds ? "compute" : "bandwidth",
      {
        bytes: say(bytes, found.token_bytes),
        memory: say(seconds, found.memory_seconds),
        flops: say(flops, found.token_flops),
        compute: say(seconds, found.compute_seconds),
      },
    ],
    [
      found.most_users ? "users" : "no_users",
      { users: many(found.most_users), context },
    ],
    [!isFinite(longest) ? "any_length" : longest ? "longest" : "no_length", { batch: many(asked.batch), longest: three(longest) }],
    from("cache_crossing", "no_cache"),
    from("pairs_crossing", "no_pairs"),
    from("compute_users", "no_compute_users"),
  ].map(([key, words]) => fill(data.sentences[key], words));
};

postx.planner.reasons = (data, model, row, { bits, found }, asked, recall) => {
  const { three, whole, say, fill } = postx.planner;
  const size = (x) => say(data.units.bytes, x);
  const context = whole(asked.context);
  const reasons = [];
  if (found.total_bytes > found.usable) {
    const needs = fill(data.sentences.needs, {
      bits: three(bits),
      total: size(found.total_bytes),
      weights: size(found.weight_bytes),
      cache: size(found.cache_bytes),
      state: size(found.state_bytes),
      usable: size(found.usable),
    });
    const rest = found.longest ? (found.most_users ? "enough" : "enough_tokens") : "";
    const words = { needs, users: three(found.most_users), longest: three(found.longest) };
    reasons.push(rest ? fill(data.sentences[rest], words) : needs);
  }
  if (model.length && model.length.tokens < asked.context)
    reasons.push(fill(data.sentences.short, { tokens: whole(model.length.tokens), context }));
  if (recall && !row.grow)
    reasons.push(fill(data.sentences.forgets, { kept: size(found.each_cache + found.each_state), context }));
  return reasons;
};
