"""What a run needs before it is started: memory from the compiled step, switches that make it fit, hours, cost."""

from ._fit import find_fit as find_fit, Fit as Fit
from ._plan import plan_stage as plan_stage, StagePlan as StagePlan
from ._virtual import start_virtual_devices as start_virtual_devices
