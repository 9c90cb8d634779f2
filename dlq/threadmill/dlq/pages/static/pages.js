/* Keeps a page of ours live, and sends what its buttons say. */
(function () {
    "use strict";

    var EVERY = 2000,
        page = document.getElementById("threadmill"),
        dot = document.getElementById("live-dot"),
        words = document.getElementById("live-words"),
        shown = {},
        underWay = false;

    function cookie(name) {
        var match = document.cookie.match("(?:^|;)\\s*" + name + "=([^;]+)");
        return match ? decodeURIComponent(match[1]) : "";
    }

    // Times are sent as they are, so that what has not changed is the same text; how long ago is told here.
    function distance(seconds) {
        var sizes = [[86400, "d"], [3600, "h"], [60, "min"], [1, "s"]], length = Math.abs(seconds), found = "0 s";
        sizes.some(function (size) {
            if (length >= size[0]) {
                found = Math.floor(length / size[0]) + " " + size[1];
                return true;
            }
            return false;
        });
        return seconds >= 0 ? found + " ago" : "in " + found;
    }

    function tellTimes() {
        page.querySelectorAll("time[datetime]:not([data-absolute])").forEach(function (element) {
            var said = distance((Date.now() - Date.parse(element.dateTime)) / 1000);
            if (!element.title) {
                element.title = element.textContent;
            }
            if (element.textContent !== said) {
                element.textContent = said;
            }
        });
    }

    function say(text, isLive) {
        if (!dot) {
            return;
        }
        dot.classList.toggle("status-dot-live", isLive);
        dot.classList.toggle("status-dot-error", !isLive);
        if (words.textContent !== text) {
            words.textContent = text;
        }
    }

    function swap(place, html) {
        var open = Array.prototype.map.call(place.querySelectorAll("details[open][id]"), function (element) {
            return element.id;
        });
        place.innerHTML = html;
        open.forEach(function (id) {
            var element = document.getElementById(id);
            if (element) {
                element.open = true;
            }
        });
    }

    function refresh(text) {
        var parsed = new DOMParser().parseFromString(text, "text/html");
        parsed.querySelectorAll("[data-live]").forEach(function (fresh) {
            var place = document.getElementById(fresh.id);
            if (place && shown[fresh.id] !== fresh.innerHTML) {
                shown[fresh.id] = fresh.innerHTML;
                swap(place, fresh.innerHTML);
            }
        });
        tellTimes();
    }

    function isTyping() {
        var element = document.activeElement;
        return Boolean(element && page.contains(element) && element.matches("input, select, textarea"));
    }

    function ask(force) {
        if (underWay || !dot || document.hidden) {
            return Promise.resolve();
        }
        if (isTyping() && !force) {
            say("Paused while you type", true);
            return Promise.resolve();
        }
        underWay = true;
        return fetch(location.href, {headers: {"X-Threadmill-Live": "1"}, credentials: "same-origin"})
            .then(function (response) {
                if (response.redirected) {
                    location.reload();  // to the page that asks for a login
                    return null;
                }
                return response.text().then(function (text) {
                    if (response.ok) {
                        refresh(text);
                        say("Live", true);
                    } else {
                        say(messageOf(text) || "Not live: status " + response.status, false);
                    }
                });
            })
            .catch(function () {
                say("Flower does not answer", false);
            })
            .then(function () {
                underWay = false;
            });
    }

    function messageOf(text) {
        try {
            return JSON.parse(text).message || "";
        } catch (error) {
            return "";
        }
    }

    function toast(message, type) {
        var container = document.getElementById("toast-container"),
            element = document.createElement("div"),
            body = document.createElement("div");
        element.className = "toast align-items-center border-0 text-bg-" + type;
        element.setAttribute("role", type === "danger" ? "alert" : "status");
        body.className = "toast-body";
        body.textContent = message;
        element.appendChild(body);
        container.appendChild(element);
        element.addEventListener("hidden.bs.toast", function () {
            element.remove();
        });
        bootstrap.Toast.getOrCreateInstance(element, {delay: type === "danger" ? 10000 : 5000}).show();
    }

    function send(form, button) {
        var target = (button && button.getAttribute("formaction")) || form.getAttribute("action"),
            question = form.getAttribute("data-ask");
        if (question && !window.confirm(question)) {
            return;
        }
        if (button) {
            button.disabled = true;
            button.classList.add("tm-under-way");
        }
        fetch(target, {
            method: "POST",
            headers: {"X-XSRFToken": cookie("_xsrf")},
            body: new URLSearchParams(new FormData(form)),
            credentials: "same-origin"
        }).then(function (response) {
            return response.text().then(function (text) {
                var answer;
                try {
                    answer = JSON.parse(text);
                } catch (error) {
                    answer = {message: "Flower answered with status " + response.status};
                }
                toast(answer.message, response.ok ? "success" : "danger");
                if (response.ok && answer.into) {
                    document.getElementById(answer.into).innerHTML = answer.html;
                    tellTimes();
                }
                if (response.ok) {
                    form.reset();
                    document.activeElement.blur();  // so that it is not taken for typing
                }
            });
        }).catch(function () {
            toast("Flower does not answer", "danger");
        }).then(function () {
            if (button) {
                button.disabled = false;
                button.classList.remove("tm-under-way");
            }
            return ask(true);
        });
    }

    page.addEventListener("submit", function (event) {
        var form = event.target;
        if (!form.hasAttribute("data-act")) {
            return;
        }
        event.preventDefault();
        send(form, event.submitter);
    });
    document.addEventListener("visibilitychange", function () {
        ask(false);
    });

    // What the parser makes of the page is what later answers are compared with.
    page.querySelectorAll("[data-live]").forEach(function (place) {
        shown[place.id] = place.innerHTML;
    });
    tellTimes();
    window.setInterval(tellTimes, 1000);
    (function again() {
        window.setTimeout(function () {
            ask(false).then(again);
        }, EVERY);
    }());
}());
