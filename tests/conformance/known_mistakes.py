"""Known mistakes, made here or elsewhere, as changes to the code that trains.

Each entry of `MISTAKES` has a module, a text that occurs in it once, and the text with the
mistake that replaces it.
"""

from __future__ import annotations

PAIRS = "raydpo.training.measures.pairs"
SURVEYED = "raydpo.training.measures.surveyed"
RANKINGS = "raydpo.training.measures.rankings"
REWARDS = "raydpo.training.measures.rewards"
CRINGE = "raydpo.training.measures.cringe"
VALUES = "raydpo.training.measures.values"
POLICY_GRADIENT = "raydpo.training.measures.policy_gradient"
OBJECTIVES = "raydpo.training.objectives"
LOOP = "raydpo.training.loop"
GROUPS = "raydpo.training.groups"
TENSORS = "raydpo.training.batch"

#: What is wrong: the module, the words, the words with the mistake.
MISTAKES: dict[str, tuple[str, str, str]] = {
    "dpop: penalty ignored": (PAIRS, '{"penalty": settings.penalty}', '{"penalty": 50.0}'),
    "discopop: temperature ignored": (
        PAIRS,
        '{"temperature": settings.temperature}',
        '{"temperature": 0.05}',
    ),
    "orpo: weight ignored": (PAIRS, "odds_weight=settings.odds_weight)", "odds_weight=0.1)"),
    "unlikelihood: alpha ignored": (
        PAIRS,
        "alpha=settings.alpha)\n            return",
        "alpha=0.5)\n            return",
    ),
    "unlikelihood: length ignored": (
        PAIRS,
        "pair_sums(outputs.logps, batch, settings.length)",
        'pair_sums(outputs.logps, batch, "sum")',
    ),
    "preferred_sft: rejected for chosen": (
        PAIRS,
        "return preferred_sft_loss(chosen)",
        "return preferred_sft_loss(rejected)",
    ),
    "preferred_sft for unlikelihood": (
        PAIRS,
        "return partial(_measure_likelihoods, settings, loss)",
        "return partial(_measure_likelihoods, settings, _of_chosen)",
    ),
    "tdpo2: alpha ignored": (PAIRS, "alpha=settings.alpha)\n    else", "alpha=0.5)\n    else"),
    "tdpo: KLs exchanged": (PAIRS, "chosen_kl, rejected_kl = ", "rejected_kl, chosen_kl = "),
    "tdpo2 as tdpo1": (
        PAIRS,
        "partial(tdpo2_loss, beta=settings.beta, alpha=settings.alpha)",
        "tdpo1_loss",
    ),
    "sppo: win rates exchanged": (PAIRS, "rates, 1 - rates", "1 - rates, rates"),
    "sppo: soft win rates as hard ones": (
        PAIRS,
        "rates = wins\n",
        "rates = wins.new_ones(wins.shape)\n",
    ),
    "soft_label: the probability ignored": (
        PAIRS,
        "losses = loss(chosen, rejected, batch.pair_probabilities)",
        "losses = loss(chosen, rejected, batch.pair_weights * 0 + 1)",
    ),
    "f_dpo: forward and reverse KL exchanged": (
        PAIRS,
        '            return f_divergence.reverse_kl_scores\n        case "forward_kl":\n'
        "            return f_divergence.forward_kl_scores",
        '            return f_divergence.forward_kl_scores\n        case "forward_kl":\n'
        "            return f_divergence.reverse_kl_scores",
    ),
    "f_dpo: scores of chosen only": (
        PAIRS,
        "dpo.sigmoid_loss(scores(chosen), scores(rejected), beta=beta)",
        "dpo.sigmoid_loss(scores(chosen), rejected, beta=beta)",
    ),
    "robust as cdpo": (
        PAIRS,
        'return dpo.robust_loss, {"flip_rate": settings.flip_rate}',
        'return dpo.conservative_loss, {"label_smoothing": settings.flip_rate}',
    ),
    "nca as dpo": (PAIRS, "return nca_loss, {}", "return dpo.sigmoid_loss, {}"),
    "apo_zero as apo_down": (PAIRS, "return apo_zero_loss, {}", "return apo_down_loss, {}"),
    "ipo: beta for tau": (PAIRS, "_plain(ipo_loss, tau=settings.tau)", "_plain(ipo_loss, tau=0.1)"),
    "length ignored": (
        PAIRS,
        "token_logratios(outputs, batch), batch, settings.length)",
        'token_logratios(outputs, batch), batch, "sum")',
    ),
    "pairs: chosen without gradient": (
        PAIRS,
        "losses = loss(chosen, rejected, batch.pair_probabilities)",
        "losses = loss(chosen.detach(), rejected, batch.pair_probabilities)",
    ),
    "pairs: rejected without gradient": (
        PAIRS,
        "losses = loss(chosen, rejected, batch.pair_probabilities)",
        "losses = loss(chosen, rejected.detach(), batch.pair_probabilities)",
    ),
    "simpo: gamma / beta for gamma": (
        PAIRS,
        "gamma=settings.gamma)",
        "gamma=settings.gamma * settings.beta)",
    ),
    "mean log-probs: sums": (
        PAIRS,
        "means = mean_logps(outputs, batch)",
        "means = batch.sequence_sums(outputs.logps)",
    ),
    "log-ratios without the reference": (
        VALUES,
        "return outputs.logps - batch.reference_token_logps",
        "return outputs.logps",
    ),
    "means over tokens left out": (
        VALUES,
        "return per_token_means(sums, batch.sequence_lengths)",
        "return sums",
    ),
    "ld_alpha ignored": (VALUES, "alpha=length.ld_alpha,", "alpha=1.0,"),
    "rankings: ld_alpha ignored": (
        RANKINGS,
        "_token_weights(batch, length.ld_alpha)",
        "_token_weights(batch, 1.0)",
    ),
    "rankings: ld_alpha from the longest": (RANKINGS, ".amin(1)", ".amax(1)"),
    "rankings: Plackett-Luce for best of K": (
        RANKINGS,
        "loss = plackett_luce_loss if plackett_luce else best_of_k_loss",
        "loss = plackett_luce_loss",
    ),
    "reward model: pairs for rankings": (
        REWARDS,
        "return _measure_rankings",
        "return _measure_pairs",
    ),
    "reward model: weights of pairs ignored": (
        REWARDS,
        "return Values(losses, batch.pair_weights, batch.pairs[:, 0], metrics)",
        "return Values(losses, losses.new_ones(losses.shape), batch.pairs[:, 0], metrics)",
    ),
    "aot: smoothing ignored": (
        SURVEYED,
        "label_smoothing=settings.label_smoothing)",
        "label_smoothing=0.0)",
    ),
    "aot, unpaired: rejected without gradient": (SURVEYED, " + there - there.detach()", ""),
    "aot, unpaired: the partner's weight ignored": (
        SURVEYED,
        "there = weight / batch.pair_weights * loss(partner, rejected)",
        "there = loss(partner, rejected)",
    ),
    "aot, unpaired: not matched by rank": (
        SURVEYED,
        "return matched_by_rank(own, other), own[partners], weights[partners]",
        "return other, own, weights",
    ),
    "aot, paired: not matched by rank": (
        SURVEYED,
        "value = matched_by_rank(margins, reference_chosen - reference_rejected)",
        "value = reference_chosen - reference_rejected",
    ),
    "aot, paired: ranks of the reference's margins for the policy's": (
        SURVEYED,
        "value = matched_by_rank(margins, reference_chosen - reference_rejected)",
        "value = matched_by_rank(reference_chosen - reference_rejected, margins)",
    ),
    "aot: ranks within a group": (
        SURVEYED,
        "matched = _match(settings.alignment, rows, weights)",
        "counts = [len(group.pairs) for group in known.groups]\n"
        "    parts = zip(rows.split(counts), weights.split(counts))\n"
        "    found = [_match(settings.alignment, one, own) for one, own in parts]\n"
        "    matched = tuple(torch.cat(columns) for columns in zip(*found))",
    ),
    "bco: shift without weights": (
        SURVEYED,
        "sum(w * both for w, both in pairs) / (2 * sum(w for w, _ in pairs))",
        "sum(both for _, both in pairs) / (2 * len(pairs))",
    ),
    "bco: shift of the first group": (
        SURVEYED,
        "        for group in known.groups\n        for pair, (",
        "        for group in known.groups[:1]\n        for pair, (",
    ),
    "bco: shift without beta": (
        SURVEYED,
        "settings.beta * _mean_logratio(known)",
        "_mean_logratio(known)",
    ),
    "bco: no shift": (SURVEYED, "shift = settings.beta * _mean_logratio(known)", "shift = 0.0"),
    "kto: weights exchanged": (
        SURVEYED,
        "desirable_weight=settings.desirable_weight,\n        undesirable_weight=settings.undesirable_weight,",
        "desirable_weight=settings.undesirable_weight,\n        undesirable_weight=settings.desirable_weight,",
    ),
    "kto: no reference point": (
        SURVEYED,
        "        reference_point,\n        beta",
        "        0.0,\n        beta",
    ),
    "kto: a reference point of the first groups": (
        SURVEYED,
        "        for group in known.groups\n        for index in",
        "        for group in known.groups[:2]\n        for index in",
    ),
    "kto: judgements turned round": (
        SURVEYED,
        "sums[batch.judged], batch.desirable",
        "sums[batch.judged], ~batch.desirable",
    ),
    "cringe: contrast on chosen": (
        CRINGE,
        "logps[chosen], contrast[rejected], alpha",
        "logps[chosen], contrast[chosen], alpha",
    ),
    "cringe: top_k of another term": (
        CRINGE,
        "outputs.top_logits[:, : settings.top_k]",
        "outputs.top_logits",
    ),
    "cringe: the same draw in every step": (
        CRINGE,
        "token_uniforms(batch, seed, step))",
        "token_uniforms(batch, seed, 0))",
    ),
    "cringe: the same draw with every seed": (
        CRINGE,
        "token_uniforms(batch, seed, step))",
        "token_uniforms(batch, 0, step))",
    ),
    "cringe: the same draw for all tokens of a completion": (
        CRINGE,
        "bits = _mixed(key[batch.sequences], batch.token_positions)",
        "bits = _mixed(key[batch.sequences], 0 * batch.token_positions)",
    ),
    "cringe: the same draw for all completions of a group": (
        CRINGE,
        "        groups,\n        within,",
        "        groups,\n        0 * within,",
    ),
    "cringe: draws by place in the micro-batch": (
        CRINGE,
        "groups = batch.group_numbers[batch.sequence_groups]",
        "groups = batch.sequence_groups",
    ),
    "pairwise_cringe: the gate's gradient ignored": (
        CRINGE,
        "gate_passes_gradient=settings.gate_gradient",
        "gate_passes_gradient=False",
    ),
    "pairwise_cringe: bias for temperature": (
        CRINGE,
        "gate_temperature=settings.gate_temperature",
        "gate_temperature=settings.gate_bias",
    ),
    "policy_gradient: beta ignored in the reward": (
        POLICY_GRADIENT,
        "rewards - settings.beta * _sampler_logratios(batch)",
        "rewards - 0.1 * _sampler_logratios(batch)",
    ),
    "policy_gradient: beta ignored in the loss": (
        POLICY_GRADIENT,
        "losses + settings.beta * _kl_term",
        "losses + 0.1 * _kl_term",
    ),
    "policy_gradient: a bonus for KL": (
        POLICY_GRADIENT,
        "batch.sampler_token_logps - batch.reference_token_logps).double()",
        "batch.reference_token_logps - batch.sampler_token_logps).double()",
    ),
    "policy_gradient: KL in the reward and in the loss": (
        POLICY_GRADIENT,
        'if settings.kl == "reward" and batch.reference_token_logps is not None:',
        "if batch.reference_token_logps is not None:",
    ),
    "policy_gradient: weighted KL as GRPO's": (
        POLICY_GRADIENT,
        "return (policy - sampler).exp() * kl",
        "return kl",
    ),
    "policy_gradient: no gradient through the KL's weight": (
        POLICY_GRADIENT,
        "return (policy - sampler).exp() * kl",
        "return (policy - sampler).exp().detach() * kl",
    ),
    "policy_gradient: lower limit ignored": (
        POLICY_GRADIENT,
        '"clip_low": settings.clip_low',
        '"clip_low": 0.2',
    ),
    "policy_gradient: upper limit ignored": (
        POLICY_GRADIENT,
        '"clip_high": settings.clip_high}',
        '"clip_high": 0.2 if settings.clip_high else None}',
    ),
    "policy_gradient: one limit for both": (
        POLICY_GRADIENT,
        '"clip_low": settings.clip_low',
        '"clip_low": settings.clip_high',
    ),
    "policy_gradient: standard deviations for rewards": (
        POLICY_GRADIENT,
        "return leave_one_out_advantages(rewards, batch.sequence_groups)",
        "return group_normalized_advantages(rewards, batch.sequence_groups)",
    ),
    "policy_gradient: rewards for standard deviations": (
        POLICY_GRADIENT,
        "return group_normalized_advantages(rewards, batch.sequence_groups)",
        "return leave_one_out_advantages(rewards, batch.sequence_groups)",
    ),
    "policy_gradient: compared over a micro-batch": (
        POLICY_GRADIENT,
        "return leave_one_out_advantages(rewards, batch.sequence_groups)",
        "return leave_one_out_advantages(rewards, 0 * batch.sequence_groups)",
    ),
    "policy_gradient: the mean of a micro-batch": (
        POLICY_GRADIENT,
        "return rewards - totals.rewards / totals.completions",
        "return rewards - rewards.mean()",
    ),
    "policy_gradient: a mean without the KL": (
        POLICY_GRADIENT,
        "rewards -= settings.beta * float(sizes.sampler_logratios[numbers].sum())",
        "pass",
    ),
    "policy_gradient: means for sums of tokens": (
        POLICY_GRADIENT,
        '"sum" if settings.loss_per == "completion" else "mean"',
        '"mean"',
    ),
    "policy_gradient: completions for tokens": (
        POLICY_GRADIENT,
        'return lengths if settings.loss_per == "token" else torch.ones_like(lengths)',
        "return torch.ones_like(lengths)",
    ),
    "policy_gradient: the mean over completions of all tokens": (
        OBJECTIVES,
        'sizes.targets if settings.loss_per == "token" else sizes.sequences',
        "sizes.sequences",
    ),
    "policy_gradient: the sampler's log-probs for the policy's": (
        POLICY_GRADIENT,
        "clipped_ratio_losses(policy, sampler, advantages, **limits)",
        "clipped_ratio_losses(sampler, policy, advantages, **limits)",
    ),
    "policy_gradient: always on-policy": (
        POLICY_GRADIENT,
        "clipped_ratio_losses(policy, sampler, advantages, **limits)",
        "clipped_ratio_losses(policy, policy.detach(), advantages, **limits)",
    ),
    "weights of pairs ignored": (
        OBJECTIVES,
        "return (values.weights * losses).sum(), weighted",
        "return losses.sum(), weighted",
    ),
    "sft_weight ignored": (
        OBJECTIVES,
        "losses + self.settings.sft_weight * anchor",
        "losses + anchor",
    ),
    "an anchor of sums": (
        OBJECTIVES,
        "sft_term(logps, batch.sequence_lengths[sequences])",
        "-logps",
    ),
    "an anchor on rejected": (
        PAIRS,
        "metrics = pair_metrics(scale * chosen, scale * rejected, outputs, batch)\n"
        "    return Values(losses, batch.pair_weights, batch.pairs[:, 0], metrics)",
        "metrics = pair_metrics(scale * chosen, scale * rejected, outputs, batch)\n"
        "    return Values(losses, batch.pair_weights, batch.pairs[:, 1], metrics)",
    ),
    "kto: an anchor on undesirable ones": (OBJECTIVES, "torch.where(there, term, 0.0)", "term"),
    "the mean over pairs, not over weights": (
        OBJECTIVES,
        "float(sizes.pair_weight[groups].sum())",
        "float(len(groups))",
    ),
    "the mean over rankings of all groups": (
        OBJECTIVES,
        "float(sizes.rankings[groups].sum())",
        "float(sizes.rankings.sum())",
    ),
    "the mean over completions, judged or not": (
        OBJECTIVES,
        "float(sizes.judged[groups].sum())",
        "float(sizes.sequences[groups].sum())",
    ),
    "sum: weights of terms ignored": (
        OBJECTIVES,
        "total + weight * loss / normalizer",
        "total + loss / normalizer",
    ),
    "sum: the first term's normalizer for all": (
        OBJECTIVES,
        "tuple(term.normalizer(known.numbers, known.sizes) for _, term in terms)",
        "tuple(terms[0][1].normalizer(known.numbers, known.sizes) for _ in terms)",
    ),
    "sum: terms do not know their step": (
        OBJECTIVES,
        "terms = tuple((weight, term.at_step(known)) for weight, term in self.terms)",
        "terms = self.terms",
    ),
    "the mean over a micro-batch": (
        LOOP,
        "self.world.size / normalizer if counts",
        "self.world.size / objective.normalizer(numbers, self.data.sizes) if counts",
    ),
    "the mean over micro-batches": (
        LOOP,
        "self.world.size / normalizer if counts",
        "self.world.size / objective.normalizer(numbers, self.data.sizes) / len(batches) if counts",
    ),
    "gradients averaged over workers, losses not scaled up": (
        LOOP,
        "self.world.size / normalizer if counts",
        "1.0 / normalizer if counts",
    ),
    "micro-batches that fill up count": (
        LOOP,
        "(self.world.size / normalizer if counts else 0.0)",
        "(self.world.size / normalizer)",
    ),
    "metrics of micro-batches that fill up count": (LOOP, "float(done.counts)", "1.0"),
    "metrics not divided": (LOOP, "name: total / normalizer for", "name: total for"),
    "pairs: chosen for rejected": (
        TENSORS,
        "(first + pair.chosen, first + pair.rejected)",
        "(first + pair.rejected, first + pair.chosen)",
    ),
    "pairs of the first group for all": (
        TENSORS,
        "(first + pair.chosen, first",
        "(pair.chosen, first",
    ),
    "all pairs weigh 1": (
        TENSORS,
        "[pair.weight for _, pair in pairs]",
        "[1.0 for _, pair in pairs]",
    ),
    "probabilities of pairs lost": (GROUPS, "1.0 if known is None else known)", "1.0)"),
    "rankings turned round": (TENSORS, "for i in group.ranking]", "for i in group.ranking[::-1]]"),
    "pairs counted, not weighed": (GROUPS, 'sum(pair["weight"] for pair in', "sum(1 for pair in"),
}
