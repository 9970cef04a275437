import subprocess, threading, time
from .fake_faulty_proxy import Answer, Stream, Cut, Hook
from .modelservice import modelservice
def test_proxy(world, namespace, proxy, tmp_path):
    kc = world.kubeconfig(tmp_path/"k", proxy.url)
    def k(*a, **kw):
        from rouse_e2e import paths
        return subprocess.run([paths.tool("kubectl"), f"--kubeconfig={kc}", *a], capture_output=True, text=True, timeout=30, **kw)
    world.cluster.apply(modelservice(namespace, 1))
    r = k("get","modelservices","-n",namespace); print(r.stdout, r.stderr); assert "m" in r.stdout
    r = k("get","secrets","-n",namespace); assert "orbidden" in r.stderr
    from rouse_e2e import paths
    w = subprocess.Popen([paths.tool("kubectl"), f"--kubeconfig={kc}", "get","modelservices","-n",namespace,"-w"], stdout=subprocess.PIPE, text=True)
    time.sleep(1)
    world.cluster.kubectl("scale","modelservice/m","--replicas=4","-n",namespace)
    time.sleep(1); 
    proxy.break_connections(); out,_ = w.communicate(timeout=10)
    print(out); assert len(out.splitlines())>=3
    proxy.rule = lambda r: Answer(409,"Conflict","nope")
    r = k("get","pods","-n",namespace); assert "nope" in r.stderr, r.stderr
    proxy.rule = lambda r: Hook(drop=True)
    r = k("get","pods","-n",namespace); print(r.stderr)
    for x in proxy.seen(): print(x, x.resource, x.write)
    time.sleep(1)
    print([ (x["verb"], x["objectRef"]["resource"], x["responseStatus"]["code"], x["requestReceivedTimestamp"]) for x in world.audit()])
