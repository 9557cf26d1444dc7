"""The settings of a whole build in seconds; beside `conftest`, of which there are several."""

# A whole build in seconds: few epochs, few samples, and yet better than a constant answer, which is a gate; for tests of what stands
# around the stages.
TINY = (
    "network.architecture=mlp",
    "network.width=0.5",
    "train.epochs=6",
    "train.batch_size=32",
    "train.learning_rate=0.01",
    "property.samples=40",
    "property.curve_samples=10",
    "property.curve=['0.01', '0.02']",
    "property.epsilon='0.01'",
    "verify.cross_check=2",
    "verify.attack_restarts=1",
    "verify.attack_steps=5",
    "profile.runs=20",
    "profile.seconds=0.05",
    "gates.certified_accuracy=0",
    "gates.dense_certified_accuracy=0",
    "gates.certified_loss=0",
    "gates.weights_removed=0",
    "gates.latency_ratio=0",
)
