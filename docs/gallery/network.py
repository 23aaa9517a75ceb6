"""A whole network, by both schemes."""

import nettrim as nt

from digits import biases, calibration, stored, test, test_labels, weights
from picture import BLUE, ORANGE, panels, save

layers = [
    nt.Layer(W.T, b, relu=k < 2, name=f"layer {k + 1}")
    for k, (W, b) in enumerate(zip(weights, biases, strict=True))
]
epsilons = (0.1, 0.3)
pruned = {
    scheme: [
        nt.prune(layers, calibration, epsilon=epsilon, scheme=scheme)
        for epsilon in epsilons
    ]
    for scheme in ("parallel", "cascade")
}

figure, (kept, reached) = panels()
for scheme, colour, marker in (("parallel", BLUE, "o-"), ("cascade", ORANGE, "s-")):
    percent = [100 * e for e in epsilons]
    accuracies = [
        (net(test).argmax(1) == test_labels).mean() for net in pruned[scheme]
    ]
    kept.plot(
        percent,
        [100 * net.kept for net in pruned[scheme]],
        marker,
        color=colour,
        label=scheme,
    )
    reached.plot(
        percent, [100 * a for a in accuracies], marker, color=colour, label=scheme
    )
kept.set(xlabel="epsilon (%)", ylabel="weights kept (%)", ylim=0)
kept.legend()
reached.axhline(
    100 * stored["test_accuracy"],
    color="black",
    linewidth=0.8,
    linestyle="--",
    label="unpruned",
)
reached.legend()
reached.set(xlabel="epsilon (%)", ylabel="test accuracy (%)")
save(figure, "network")
