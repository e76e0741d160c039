import asyncio,sys,time,logging
logging.basicConfig(level=logging.WARNING)
from fumehood.common.settings import load_settings
from fumehood.worker.sandbox.doctor import examine
prof=sys.argv[1]; mask=tuple(sys.argv[2].split(",")) if len(sys.argv)>2 and sys.argv[2] else ()
e=asyncio.run(examine(load_settings(sandbox_disable=mask),prof))
for f in e.findings:
    print(f.guarantee, f.level.upper(), "| by", f.by, "| bypass", f.bypass, "| remedy", f.remedy, "\n      ", f.evidence[:600])
print(e.seconds)
